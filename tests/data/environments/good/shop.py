"""All kinds of members: tools are methods, inherited or static ones; class methods and properties are none."""


class Shop:
    currency = "EUR"

    def reset(self, stock=None, **kwargs):
        self.stock = dict(stock or {"tea": 3, "rice": 1})
        self.sold = {}

    def buy(self, item: str, count: int = 1) -> str:
        """Buy something.

        Args:
            item: What.
            count: How many.
        """
        if not 0 < count <= self.stock.get(item, 0):
            raise ValueError(f"there are {self.stock.get(item, 0)} of {item}")
        self.stock[item] -= count
        self.sold[item] = self.sold.get(item, 0) + count
        return f"sold {count} {item}"

    @staticmethod
    def convert(amount: float, currency: str = "USD") -> str:
        """Convert a price.

        Args:
            amount: In euros.
            currency: Into which.
        """
        return f"{amount * {'USD': 1.1, 'GBP': 0.85}.get(currency, 1.0):.2f} {currency}"

    @classmethod
    def of(cls, stock):
        made = cls()
        made.reset(stock)
        return made

    @property
    def value(self):
        return sum(self.stock.values())

    def _restock(self):
        self.stock["tea"] = 3
