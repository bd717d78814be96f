"""Print the picture of imports in words: `python -m scripts.imports`. docs/architecture.md has the same text.

A floor is one above the highest package that it imports. Packages and arrows are read from the code, by the tool of
lint-imports; the order that a package must keep is in pyproject.toml.
"""

import grimp

ROOT = "kdbench"


def arrows() -> dict[str, set[str]]:
    """Return the packages that each package or module directly below kdbench imports."""
    graph = grimp.build_graph(ROOT, cache_dir=None)
    found: dict[str, set[str]] = {name: set() for name in map(below, graph.modules) if name}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            if below(module) and below(imported) and below(module) != below(imported):
                found[below(module)].add(below(imported))
    return found


def below(module: str) -> str:
    """Return the package that a module is in; for kdbench itself and its __main__ nothing."""
    name = module.removeprefix(ROOT).lstrip(".").partition(".")[0]
    return "" if name.startswith("__") else name


def floors(found: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each package, from 0. Raises ValueError if packages import each other in a circle."""
    height: dict[str, int] = {}
    while ready := [name for name in found if name not in height and found[name] <= height.keys()]:
        height |= {name: max((height[one] + 1 for one in found[name]), default=0) for name in ready}
    if circle := found.keys() - height.keys():
        raise ValueError(f"packages that import each other in a circle, or one of these: {', '.join(sorted(circle))}")
    return height


def picture() -> str:
    """Return the packages from the top floor down, each with those it imports, nearest first."""
    found = arrows()
    height = floors(found)
    count, width = sum(map(len, found.values())), max(map(len, found))
    lines = [f"{len(found)} packages and modules, {max(height.values()) + 1} floors, {count} arrows, no circle"]
    for floor in range(max(height.values()), -1, -1):
        lines.append("")
        for name in sorted(name for name in found if height[name] == floor):
            names = sorted(found[name], key=lambda one: (-height[one], one))
            lines.append(f"{floor:2}  {name:{width}}  {'-> ' if names else ''}{' '.join(names)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(picture())
