"""Nested arguments: lists of objects, objects of texts, pairs."""

from typing import Any


class Orders:
    def reset(self, **kwargs):
        self.orders = []

    def place(
        self,
        items: list[dict[str, Any]],
        address: dict[str, str],
        window: tuple[int, int] = (8, 18),
        options: dict | None = None,
    ) -> str:
        """
        Place an order.

        Args:
            items: Objects with sku and count.
            address: Street and town by name.
            window: From which hour to which.
            options: Anything else.
        """
        self.orders.append({"items": items, "address": address, "window": tuple(window), "options": options or {}})
        return f"order {len(self.orders)}: {len(items)} items"

    def cancel(self, numbers: list[int]) -> str:
        """
        Cancel orders.

        Args:
            numbers: Their numbers, from 1.
        """
        for number in numbers:
            if not 1 <= number <= len(self.orders):
                raise ValueError(f"there is no order {number}")
        self.orders = [order for n, order in enumerate(self.orders, 1) if n not in numbers]
        return f"{len(self.orders)} left"
