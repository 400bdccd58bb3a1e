"""An ordinary TRL environment class, for a `jsonl` suite."""


class Orders:
    def reset(self, orders=None, note=""):
        self.orders = dict(orders or {})
        self.note = note
        self.refunded = []

    def look_up(self, order: str) -> str:
        """Look up an order.

        Args:
            order: Its number.
        """
        return f"{self.orders[order]} {self.note}".strip()

    def refund(self, order: str) -> str:
        """Refund an order.

        Args:
            order: Its number.
        """
        if order not in self.orders:
            raise ValueError(f"there is no order {order}")
        self.refunded.append(order)
        return "Refunded."
