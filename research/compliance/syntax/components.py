"""The strongly connected components of a graph: Tarjan (1972), without recursion."""

from collections.abc import Iterator, Mapping, Sequence

from research.compliance.syntax.contract import contract

UNSEEN = -1


class Search:
    """A search in depth through a graph whose nodes are numbers."""

    def __init__(self, edges: Sequence[Sequence[int]]) -> None:
        self.edges = edges
        self.index = [UNSEEN] * len(edges)  # when a node was first seen
        self.low = [UNSEEN] * len(edges)  # the earliest node on the stack that it reaches
        self.is_on_stack = [False] * len(edges)
        self.stack: list[int] = []
        self.seen = 0

    @contract
    def enter(self, node: int) -> None:
        """Number a node at the first sight of it."""
        if self.index[node] == UNSEEN:
            self.index[node] = self.low[node] = self.seen
            self.seen += 1
            self.stack.append(node)
            self.is_on_stack[node] = True

    def find_next(self, node: int, position: int) -> int:
        """Return the position of the next child that was not seen yet, or the number of children."""
        children = self.edges[node]
        for number in range(position, len(children)):
            child = children[number]
            if self.index[child] == UNSEEN:
                return number
            if self.is_on_stack[child]:
                self.low[node] = min(self.low[node], self.low[child])
        return len(children)

    def leave(self, node: int) -> list[int]:
        """Return the component that ends with a node; empty where it goes on above."""
        if self.low[node] != self.index[node]:
            return []
        start = self.stack.index(node)
        component, self.stack = self.stack[start:], self.stack[:start]
        for member in component:
            self.is_on_stack[member] = False
        return component

    @contract
    def walk(self, root: int) -> Iterator[list[int]]:
        """Yield the components that are reached from a node and were not before."""
        work = [(root, 0)] if self.index[root] == UNSEEN else []
        while work:
            node, position = work.pop()
            self.enter(node)
            number = self.find_next(node, position)
            if number < len(self.edges[node]):
                work += [(node, number), (self.edges[node][number], 0)]
            elif component := self.leave(node):
                yield component


@contract
def find_components(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph."""
    names = [*edges]
    numbers = {name: number for number, name in enumerate(names)}
    search = Search([[numbers[child] for child in edges[name] if child in numbers] for name in names])
    return [[names[node] for node in component] for root in range(len(names)) for component in search.walk(root)]
