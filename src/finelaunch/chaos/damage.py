"""What disks and hands do to files."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path


def remove(path: Path, _draw: random.Random) -> None:
    """Delete the file."""
    path.unlink()


def cut_to(fraction: float) -> Callable[[Path, random.Random], None]:
    """Return what cuts a file to that share of its bytes, and off its last byte at least."""

    def cut(path: Path, _draw: random.Random) -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(min(int(size * fraction), size - 1))

    return cut


def flip_bit(path: Path, draw: random.Random) -> None:
    """Turn one bit round, anywhere in the file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


DAMAGE: Mapping[str, Callable[[Path, random.Random], None]] = {
    "removed": remove,
    "cut to 0 bytes": cut_to(0.0),
    "cut to 1 %": cut_to(0.01),
    "cut to 50 %": cut_to(0.5),
    "cut to 99 %": cut_to(0.99),
    "one bit flipped": flip_bit,
}
"""What can be done to a file that is not empty, by what it is called."""


def files_to_damage(checkpoint: Path) -> list[str]:
    """Return the files of a checkpoint that hold something, in order: those of its manifest, and that itself."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    return [path.relative_to(checkpoint).as_posix() for path in paths]
