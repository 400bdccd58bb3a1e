"""A guessing game: the observation of `reset` says what to do, and the environment owns the reward."""


class WordGame:
    WORDS = ("crane", "pilot", "mango")

    def reset(self, word: str | None = None, number: int = 0, **kwargs) -> str:
        self.word = word or self.WORDS[number % len(self.WORDS)]
        self.guesses = []
        return f"Guess a word of {len(self.word)} letters. You have 6 tries."

    def guess(self, word: str) -> str:
        """
        Guess the word.

        Args:
            word: Five letters, lower case.

        Returns:
            A mark for each letter: + in its place, ? elsewhere, - nowhere.
        """
        if len(word) != len(self.word):
            raise ValueError(f"{word!r} has not {len(self.word)} letters")
        if len(self.guesses) >= 6:
            raise ValueError("the game is over")
        self.guesses.append(word)
        marks = ["+" if a == b else "?" if a in self.word else "-" for a, b in zip(word, self.word, strict=True)]
        return "".join(marks)

    def get_reward(self) -> float:
        return float(self.word in self.guesses)
