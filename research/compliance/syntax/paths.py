"""The ways through the body of a loop: which statements come after which, and which ways lead to one more round."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from research.compliance.syntax.contract import contract
from research.compliance.syntax.folding import get_truth
from research.compliance.syntax.functions import FunctionNode
from research.compliance.syntax.tree import list_children, walk

AGAIN, OUT = -1, -2  # the next round of the loop, and whatever is after it
Loop = ast.For | ast.AsyncFor | ast.While
SILENT = ast.Pass | ast.Break | ast.Continue  # they raise nothing


@dataclass(frozen=True)
class Block:
    """Statements in a row, and where the ways out of them lead."""

    statements: list[ast.stmt]
    after: frozenset[int]
    break_to: frozenset[int]
    continue_to: frozenset[int]
    handlers: frozenset[int] = frozenset()

    def enter(self, statements: list[ast.stmt], after: frozenset[int]) -> frozenset[int]:
        """Return the first of some statements, or what is after them where there are none."""
        return frozenset([id(statements[0])]) if statements else after


@dataclass
class Paths:
    """The statements of a loop's body and those that follow each of them."""

    loop: Loop
    nodes: dict[int, ast.stmt] = field(default_factory=dict)
    edges: dict[int, frozenset[int]] = field(default_factory=dict)
    handlers: dict[int, frozenset[int]] = field(default_factory=dict)  # of each statement, those of the tries around it

    def __post_init__(self) -> None:
        left = [Block(self.loop.body, frozenset([AGAIN]), frozenset([OUT]), frozenset([AGAIN]))]
        while left:
            block = left.pop()
            for statement, following in zip(block.statements, [*block.statements[1:], None], strict=True):
                after = frozenset([id(following)]) if following is not None else block.after
                inner, targets = expand(statement, after, block)
                self.nodes[id(statement)], self.handlers[id(statement)] = statement, block.handlers
                self.edges[id(statement)] = targets if isinstance(statement, SILENT) else targets | block.handlers
                left += [part for part in inner if part.statements]

    @contract
    def leads_again(self, start: Iterable[int], blocked: set[int]) -> bool:
        """Return whether some way from a node leads to one more round without passing one of the blocked nodes."""
        left = [node for node in start if node not in blocked]
        seen = {*left}
        while left:
            node = left.pop()
            reached = [child for child in self.edges.get(node, ()) if child not in seen and child not in blocked]
            seen.update(reached)
            left += reached
        return AGAIN in seen

    @contract
    def always_passes(self, nodes: set[int]) -> bool:
        """Return whether all ways to one more round pass one of some nodes."""
        return not self.leads_again([id(self.loop.body[0])], nodes)

    def iter_exits(self) -> Iterator[tuple[ast.If, bool]]:
        """Yield the ifs with a branch that ends the loop, each with the value of its test for which the loop goes on."""
        for node in self.nodes.values():
            if isinstance(node, ast.If):
                after = self.edges[id(node)] - {id(node.body[0])}
                if not self.leads_again([id(node.body[0])], set()):
                    yield node, False
                elif node.orelse and not self.leads_again(after, set()):
                    yield node, True


@contract
def expand(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return the blocks inside a statement, and the statements that may follow it."""
    for kinds, function in EXPANDERS:
        if isinstance(statement, kinds):
            return function(statement, after, block)
    return [], after


def expand_jump(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return where break, continue, return and raise lead."""
    if isinstance(statement, ast.Break | ast.Continue):
        return [], block.break_to if isinstance(statement, ast.Break) else block.continue_to
    return [], frozenset([OUT])


def expand_if(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return the branches of an if."""
    assert isinstance(statement, ast.If)
    parts = [inside(block, statements, after) for statements in (statement.body, statement.orelse)]
    truth = get_truth(statement.test)
    taken = [part for part, value in zip(parts, (True, False), strict=True) if truth in (None, value)]
    return parts, frozenset().union(*(block.enter(part.statements, after) for part in taken))


def expand_loop(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return the body of an inner loop, which may run never, and its else."""
    assert isinstance(statement, Loop)
    head = frozenset([id(statement)])
    body = Block(statement.body, head, after, head, block.handlers)
    is_endless = isinstance(statement, ast.While) and get_truth(statement.test)
    targets = block.enter(statement.body, head) | (frozenset() if is_endless else block.enter(statement.orelse, after))
    return [body, inside(block, statement.orelse, after)], targets


def expand_try(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return the parts of a try: each statement of its body may lead to its handlers, and all ways to its finally."""
    assert isinstance(statement, ast.Try | ast.TryStar)
    final = block.enter(statement.finalbody, after)
    outside = block
    if statement.finalbody:
        outside = Block([], after, final, final, block.handlers)
        jumps = [node for node in walk(statement) if isinstance(node, ast.Break | ast.Continue)]
        exits = [block.break_to if isinstance(node, ast.Break) else block.continue_to for node in jumps]
        last = inside(block, statement.finalbody, after.union(*exits))
    else:
        last = inside(block, [], after)
    handlers = frozenset(id(handler.body[0]) for handler in statement.handlers)
    otherwise = inside(outside, statement.orelse, final)
    body = inside(outside, statement.body, block.enter(statement.orelse, final))
    guarded = Block(body.statements, body.after, body.break_to, body.continue_to, handlers | block.handlers)
    caught = [inside(outside, handler.body, final) for handler in statement.handlers]
    return [guarded, otherwise, *caught, last], block.enter(statement.body, final)


def expand_with(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return the body of a with."""
    assert isinstance(statement, ast.With | ast.AsyncWith)
    return [inside(block, statement.body, after)], block.enter(statement.body, after)


def expand_match(statement: ast.stmt, after: frozenset[int], block: Block) -> tuple[list[Block], frozenset[int]]:
    """Return the cases of a match, of which none may fit."""
    assert isinstance(statement, ast.Match)
    parts = [inside(block, case.body, after) for case in statement.cases]
    last = statement.cases[-1]
    is_complete = last.guard is None and isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
    targets = [block.enter(part.statements, after) for part in parts]
    return parts, frozenset().union(*targets, frozenset() if is_complete else after)


@contract
def inside(block: Block, statements: list[ast.stmt], after: frozenset[int]) -> Block:
    """Return statements inside a block: break, continue and exceptions lead where they lead there."""
    return Block(statements, after, block.break_to, block.continue_to, block.handlers)


EXPANDERS = [
    (ast.Break | ast.Continue | ast.Return | ast.Raise, expand_jump),
    (ast.If, expand_if),
    (Loop, expand_loop),
    (ast.Try | ast.TryStar, expand_try),
    (ast.With | ast.AsyncWith, expand_with),
    (ast.Match, expand_match),
]


@contract
def list_heads(statement: ast.stmt) -> list[ast.AST]:
    """Return what a statement evaluates itself: the test of an if, the iterator of a for; a simple statement is all of it."""
    if isinstance(statement, ast.If | ast.While):
        return [statement.test]
    if isinstance(statement, ast.For | ast.AsyncFor):
        return [statement.iter]
    if isinstance(statement, ast.With | ast.AsyncWith):
        return [*statement.items]
    if isinstance(statement, ast.Match):
        return [statement.subject]
    return [] if isinstance(statement, ast.Try | ast.TryStar | FunctionNode | ast.ClassDef) else [statement]


@contract
def walk_certain(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of expressions that are evaluated in any case: not the rest of an `and`, no lambda, no comprehension."""
    left = [*nodes]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.BoolOp):
            left.append(node.values[0])
        elif isinstance(node, ast.IfExp):
            left.append(node.test)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            left += [part.iter for part in node.generators[:1]]
        elif not isinstance(node, ast.Lambda):
            left += list_children(node)
