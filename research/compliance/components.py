"""The strongly connected components of a graph."""

from collections.abc import Mapping, Sequence


def find_components(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph: Tarjan (1972), without recursion."""
    index, low, on_stack = dict[str, int](), dict[str, int](), set[str]()
    stack, components = list[str](), list[list[str]]()
    for root in edges:
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            node, position = work.pop()
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
                on_stack.add(node)
            children = [child for child in edges[node] if child in edges]
            descended = False
            for number in range(position, len(children)):
                child = children[number]
                if child not in index:
                    work += [(node, number), (child, 0)]
                    descended = True
                    break
                if child in on_stack:
                    low[node] = min(low[node], low[child])
            if descended:
                continue
            if low[node] == index[node]:
                start = stack.index(node)
                components.append(stack[start:])
                on_stack.difference_update(stack[start:])
                del stack[start:]
    return components
