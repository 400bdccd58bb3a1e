"""A client of a service, all of it asynchronous; the service is a dict here, and waits as a network does."""

import asyncio


class Web:
    limit = asyncio.Semaphore(4)  # all instances share the one client

    async def reset(self, documents=None, **kwargs):
        await asyncio.sleep(0)
        self.documents = dict(documents or {"faq": "Refunds take 3 days."})
        self.requests = []
        return f" There are {len(self.documents)} documents."

    async def _get(self, path):
        async with self.limit:
            await asyncio.sleep(0)
            self.requests.append(path)
            return self.documents.get(path)

    async def fetch(self, path: str, timeout: float = 1.0) -> str:
        """
        Fetch a document.

        Args:
            path: Its name.
            timeout: Seconds to wait.
        """
        found = await asyncio.wait_for(self._get(path), 1.0 + abs(timeout))
        if found is None:
            raise LookupError(f"404: {path}")
        return found

    async def put(self, path: str, text: str) -> str:
        """
        Store a document.

        Args:
            path: Its name.
            text: Its content.
        """
        await asyncio.sleep(0)
        self.documents[path] = text
        return "stored"

    async def get_reward(self) -> float:
        await asyncio.sleep(0)
        return min(1.0, len(self.requests) / 2)
