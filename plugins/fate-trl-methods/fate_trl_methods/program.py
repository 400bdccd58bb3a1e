"""A verifier that runs the program in an answer, in three tiers."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fate_trl import Score, Trajectory

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
_LIMITED = """
import resource, runpy, sys
seconds, megabytes = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if sys.platform != "darwin":
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
sys.argv = ["program.py"]
runpy.run_path("program.py", run_name="__main__")
"""


class Program:
    """Runs the last fenced block of Python in the answer: 1/3 if it parses, 2/3 if it runs, 1 if it is right.

    0 where there is no block, or where it does not parse. It runs with `task.data["program"]["stdin"]` as input, and
    is right if it ends with code 0 and prints `["stdout"]`, white space at the ends of lines and of the text aside.
    Not applicable to tasks without the key `program`. A program that outlasts its time is an error, never a 0: whether
    it is wrong or only slow cannot be told.

    It has a folder and a process group of its own, limited memory, processor time and file size, no input but stdin and
    no environment variables. That keeps accidents in; it is no sandbox against an attacker: run it in a container.

    Source: solver-informed RL [recall]: executable rewards in tiers of format, execution and correctness; their values
    are ours.

    Args:
        seconds: Time for one program.
        memory: Of its address space, in MB.
        workers: Programs at a time.
        everywhere: Whether it applies to tasks without the key too; there a program that runs is right.
    """

    objectives = ("program",)

    def __init__(
        self,
        seconds: Annotated[float, Field(gt=0, le=600)] = 10.0,
        memory: Annotated[int, Field(ge=64)] = 1024,
        workers: Annotated[int, Field(ge=1, le=64)] = 2,
        everywhere: bool = False,
    ):
        self.seconds, self.memory, self.workers, self.everywhere = seconds, memory, workers, everywhere

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        """One score each; see hookspecs.Verifier."""
        with ThreadPoolExecutor(self.workers, "fate-trl-program") as pool:
            return [{"program": score} for score in pool.map(self._score, trajectories)]

    def _score(self, trajectory: Trajectory) -> Score:
        wanted = trajectory.task.data.get("program", {} if self.everywhere else None)
        if not isinstance(wanted, Mapping):
            return Score.not_applicable("the task asks for no program")
        blocks = _BLOCK.findall(trajectory.answer)
        if not blocks:
            return Score(0.0, reason="no program", feedback="Write the program as one fenced block of Python.")
        try:
            ast.parse(blocks[-1])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return Score(0.0, reason=f"it does not parse: {error}", feedback=f"The program has an error: {error}.")
        return self._ran(blocks[-1], wanted)

    def _ran(self, program: str, wanted: Mapping[str, Any]) -> Score:
        try:
            code, out, err = self._run(program, str(wanted.get("stdin", "")))
        except subprocess.TimeoutExpired:
            return Score.error(f"the program ran for more than {self.seconds:g} s", "verifier_timeout")
        if code == -signal.SIGXCPU:
            return Score.error(f"the program computed for more than {self.seconds:g} s", "verifier_timeout")
        if code:
            last = err.strip().splitlines()[-1:] or [f"code {code}"]
            return Score(1 / 3, reason=f"it fails: {last[0]}", feedback=f"The program fails: {last[0]}.")
        if "stdout" in wanted and _plain(out) != _plain(str(wanted["stdout"])):
            return Score(2 / 3, reason=f"it prints {out[:200]!r}", feedback="The program prints something else.")
        return Score(1.0)

    def _run(self, program: str, stdin: str) -> tuple[int, str, str]:
        """(exit code, output, errors) of a program. Raises subprocess.TimeoutExpired."""
        limits = [str(max(1, round(self.seconds))), str(self.memory)]
        with tempfile.TemporaryDirectory(prefix="fate-trl-program-") as folder:
            (Path(folder) / "program.py").write_text(program, encoding="utf-8", errors="replace")
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _LIMITED, *limits],
                cwd=folder,
                env={"PATH": os.defpath},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            try:
                out, err = process.communicate(stdin.encode(errors="replace"), timeout=self.seconds)
            finally:
                _end(process)
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
