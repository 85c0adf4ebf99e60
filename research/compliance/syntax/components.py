"""The cycles of a graph: groups of nodes each of which leads to all of its group."""

from collections.abc import Collection, Mapping

from research.compliance.syntax.contract import contract


@contract
def find_cycles(edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the groups of nodes that lead back to themselves, each in the order of the graph."""
    left = {name: {*children} & {*edges} for name, children in edges.items()}
    for _ in range(len(left)):  # what leads nowhere, or what nothing leads to, is in no cycle
        reached = {child for children in left.values() for child in children}
        kept = {name for name, children in left.items() if children and name in reached}
        if len(kept) == len(left):
            break
        left = {name: left[name] & kept for name in left if name in kept}
    reach = {name: find_reached(name, left) for name in left}
    groups = dict[str, list[str]]()
    for name in left:
        if name in reach[name]:
            first = next(other for other in left if other in reach[name] and name in reach[other])
            groups.setdefault(first, []).append(name)
    return [*groups.values()]


def find_reached(start: str, edges: Mapping[str, Collection[str]]) -> set[str]:
    """Return the nodes that a node leads to; itself only where a way leads back."""
    reached, left = set[str](), [start]
    while left:
        new = {*edges[left.pop()]} - reached
        reached |= new
        left += new
    return reached
