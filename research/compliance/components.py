"""The strongly connected components of a graph: Tarjan (1972), without recursion."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Search:
    """A search in depth through a graph."""

    edges: Mapping[str, Sequence[str]]
    index: dict[str, int] = field(default_factory=dict)
    low: dict[str, int] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    on_stack: set[str] = field(default_factory=set)

    def enter(self, node: str) -> None:
        """Number a node at the first sight of it."""
        if node not in self.index:
            self.index[node] = self.low[node] = len(self.index)
            self.stack.append(node)
            self.on_stack.add(node)

    def find_next(self, node: str, children: Sequence[str], position: int) -> int:
        """Return the position of the next child that no one has seen, or the number of children."""
        for number in range(position, len(children)):
            child = children[number]
            if child not in self.index:
                return number
            if child in self.on_stack:
                self.low[node] = min(self.low[node], self.low[child])
        return len(children)

    def leave(self, node: str) -> list[str]:
        """Return the component that ends with a node; empty where it goes on above."""
        if self.low[node] != self.index[node]:
            return []
        start = self.stack.index(node)
        component = self.stack[start:]
        self.on_stack.difference_update(component)
        del self.stack[start:]
        return component

    def walk(self, root: str) -> Iterator[list[str]]:
        """Yield the components that are reached from a node and were not before."""
        work = [(root, 0)] if root not in self.index else []
        while work:
            node, position = work.pop()
            self.enter(node)
            children = [child for child in self.edges[node] if child in self.edges]
            number = self.find_next(node, children, position)
            if number < len(children):
                work += [(node, number), (children[number], 0)]
            elif component := self.leave(node):
                yield component


def find_components(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph."""
    search = Search(edges)
    return [component for root in edges for component in search.walk(root)]
