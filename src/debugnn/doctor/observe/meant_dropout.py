"""Dropout that a model's code keeps on in every mode, as Monte Carlo dropout does.

Of Gal & Ghahramani 2016, Dropout as a Bayesian approximation, arXiv:1506.02142: passes with dropout
are averaged in evaluation too. `F.dropout(x, p, training=True)` says that it is meant; without this
argument dropout stays on as well, and that is a common slip.
"""

import ast
import inspect
import textwrap

from torch import nn

from debugnn.doctor.reachable import is_own

_MOST = 32  # most classes whose code is read


def keeps_dropout_on(model: nn.Module) -> bool:
    """Return whether the code of a user's module calls a dropout function with `training=True`."""
    kinds = dict.fromkeys(type(m) for m in model.modules() if is_own(type(m).__module__))
    return any(_asks_for_it(kind) for kind in list(kinds)[:_MOST])


def _asks_for_it(kind: type[nn.Module]) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):  # code without a file
        return False
    return any(isinstance(node, ast.Call) and _keeps_on(node) for node in ast.walk(tree))


def _keeps_on(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return "dropout" in name and any(
        each.arg == "training" and isinstance(each.value, ast.Constant) and each.value.value is True
        for each in call.keywords
    )
