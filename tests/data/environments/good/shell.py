"""A shell over files that are a dict: nothing outside is touched."""


class Shell:
    def reset(self, files=None, **kwargs):
        self.files = dict(files or {"/readme.txt": "Hello."})

    def ls(self, path: str = "/") -> str:
        """List a folder.

        Args:
            path: The folder.
        """
        return "\n".join(sorted(name for name in self.files if name.startswith(path))) or "(empty)"

    def cat(self, path: str) -> str:
        """Show a file.

        Args:
            path: The file.
        """
        if path not in self.files:
            raise FileNotFoundError(f"{path}: no such file")
        return self.files[path]

    def write(self, path: str, text: str, append: bool = False) -> str:
        """Write a file.

        Args:
            path: The file.
            text: What to write.
            append: Keep what stands there.
        """
        self.files[path] = (self.files.get(path, "") if append else "") + text
        return f"wrote {len(text)} characters"
