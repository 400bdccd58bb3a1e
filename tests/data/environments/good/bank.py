"""Tools that a base class brings along, one of them overridden, whose docstring is inherited."""


class Ledger:
    """The base: not an environment of its own."""

    def reset(self, **accounts):
        accounts.pop("prompt", None)
        self.balance = {"own": 100, **accounts}

    def show(self, account: str = "own") -> str:
        """Show a balance.

        Args:
            account: Which.
        """
        return str(self.balance.get(account, 0))

    def pay(self, account: str, amount: int) -> str:
        """Pay from the own account.

        Args:
            account: To which.
            amount: How much.
        """
        raise NotImplementedError


class Bank(Ledger):
    def pay(self, account: str, amount: int) -> str:
        if not 0 < amount <= self.balance["own"]:
            raise ValueError("that cannot be paid")
        self.balance["own"] -= amount
        self.balance[account] = self.balance.get(account, 0) + amount
        return f"paid {amount}"
