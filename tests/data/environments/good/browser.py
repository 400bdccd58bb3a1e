"""Pages and links, with a history; a page that is not there is told in the result, not raised."""


class Browser:
    def reset(self, pages=None, **kwargs):
        self.pages = dict(pages or {"home": "Welcome. [news]", "news": "Nothing new. [home]"})
        self.history = ["home"]
        return [{"type": "text", "text": "You are on the page home."}]

    def open(self, url: str) -> str:
        """Open a page.

        Args:
            url: Its name.
        """
        if url not in self.pages:
            return f"404: there is no page {url}"
        self.history.append(url)
        return self.pages[url]

    def back(self) -> str:
        """Go back to the page before this one."""
        if len(self.history) > 1:
            self.history.pop()
        return self.pages[self.history[-1]]

    def scroll(self, lines: int = 10, up: bool = False) -> str:
        """Scroll the page.

        Args:
            lines: How far.
            up: Whether upwards.
        """
        return f"scrolled {'up' if up else 'down'} by {lines}"
