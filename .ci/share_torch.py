"""Shows a fresh environment this environment's torch and what torch needs, and nothing else.

python .ci/share_torch.py FOLDER ENVIRONMENT: fills FOLDER with links and names it in a .pth file of ENVIRONMENT, so
that a clean install is tested without fetching and unpacking torch's 5 GB again. pip takes what lies there as
installed, and leaves it alone because it is outside ENVIRONMENT.
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(name: str, extras: frozenset[str], seen: dict[str, set[str]]) -> None:
    """Add ``name`` and all that it requires, with those extras, to ``seen``."""
    known = seen.setdefault(name, set())
    if {"", *extras} <= known:
        return
    known |= {"", *extras}
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            if requirement.name != "setuptools":  # an environment has its own
                needed(requirement.name, frozenset(requirement.extras), seen)


def main() -> None:
    folder, environment = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True)
    names: dict[str, set[str]] = {}
    try:
        needed("torch", frozenset(), names)
    except PackageNotFoundError as error:
        raise SystemExit(f"{sys.prefix} should hold torch and what it needs, but has no {error.name}") from None
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    site = subprocess.run(
        [environment / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(site, "torch_of_another_environment.pth").write_text(f"{folder}\n")
    print(f"{environment} sees {', '.join(sorted(names))}")


if __name__ == "__main__":
    main()
