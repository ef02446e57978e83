"""Print the lowest version that pyproject.toml allows of each dependency of the package, as constraints for pip.

The tools of the tests stay as new as they are: a user of the package never installs them.
"""

import re
import sys
import tomllib
from pathlib import Path


def constraints(pyproject: Path) -> list[str]:
    """`NAME==FLOOR` for all that the package requires.

    Raises:
        ValueError: a requirement that is not `NAME>=VERSION`.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    lines = []
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no plain floor (NAME>=VERSION)")
        lines.append(f"{match[1]}=={match[2]}")
    return lines


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "pyproject.toml"
    try:
        sys.stdout.write("\n".join(constraints(path)) + "\n")
    except ValueError as error:
        sys.exit(str(error))
