"""NanoGuard, a classifier of prompt injections (16.8 M parameters, MIT): pip install --no-deps metatronnanoguard

A guard of your own looks like this: a file with one class, whose `scores` takes texts and gives for each the
probability that it is unsafe.
"""


class Guard:
    def __init__(self, device="cpu"):
        from nanoguard import NanoGuard

        self._guard = NanoGuard(device=device)

    def scores(self, texts):
        return [found.injection_score for found in self._guard.scan_batch(list(texts))]
