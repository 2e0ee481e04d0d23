"""Write the source's pictures as folders, eight of its classes kept apart: a rehearsal without any target.

    cd SOMEWHERE; python .../results/tiny/rehearsal/make.py

src/train and src/val hold 28 classes to harden on, things/test the other eight to measure on. What a change of
the recipe does to classes that the hardening never saw can so be asked of source pictures alone (traps 36).
"""

from __future__ import annotations

from pathlib import Path

from zsrobust import data

APART = ("house", "cup", "key", "umbrella", "lamp", "bell", "hat", "bottle")
TRAIN, VAL = 12_800, 1_600


def main() -> None:
    """Write both folders below the current one."""
    for split, most in (("train", TRAIN), ("val", VAL)):
        images, written = data.open_set("demo/source", split), 0
        for index in images.first(None):
            name = images.classnames[images.labels[index]]
            if split == "train" and name in APART:
                continue
            folder = Path("things/test" if name in APART else f"src/{split}") / name
            folder.mkdir(parents=True, exist_ok=True)
            number = images.ids[index].rpartition("/")[2]
            images.picture(index).save(folder / f"{number}.png", compress_level=1)
            written += 1
            if written == most:
                break


if __name__ == "__main__":
    main()
