"""The Dockerfile and .dockerignore, read as a builder reads them: as much of both languages as these two files use."""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One of them, and the stage it is in (from 0; -1: before the first)."""

    stage: int
    word: str
    rest: str

    @property
    def words(self) -> list[str]:
        """Exec form: a JSON list. Fails where it is the shell's."""
        parsed: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return parsed


def instructions() -> list[Instruction]:
    lines = (line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    found, stage = [], -1
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            stage += word == "FROM"
            found.append(Instruction(stage, word, rest))
    return found


def of_image(word: str) -> list[Instruction]:
    """Those of the last stage: what the image has."""
    every = instructions()
    return [each for each in every if each.word == word and each.stage == every[-1].stage]


def environment(stage: int | None = None) -> dict[str, str]:
    """ENV of the image, or of a stage."""
    each = of_image("ENV") if stage is None else [e for e in instructions() if (e.word, e.stage) == ("ENV", stage)]
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(e.rest for e in each)))


def copied() -> list[tuple[str, str]]:
    """From where in the checkout to where in the image: COPY without --from."""
    found = []
    for each in instructions():
        if each.word == "COPY" and "--from=" not in each.rest:
            *sources, target = each.rest.split()
            found += [(source.rstrip("/"), target) for source in sources]
    return found


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets it through to the builder: the last pattern that names it, or a parent, decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern = line.lstrip("!")
            parents = [path, *(str(parent) for parent in Path(path).parents)][:-1]
            wanted = pattern.removeprefix("**/")
            if any(fnmatch(each, wanted) or (wanted != pattern and Path(each).name == wanted) for each in parents):
                sent = line.startswith("!")
    return sent
