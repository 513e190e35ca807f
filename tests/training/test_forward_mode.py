"""Forward-mode differentiation, which sends no errors: the plain derivative, or a refusal."""

import copy

import pytest
import torch
from spelled_out import attached, batch
from subjects import over_examples
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jvp, vmap

import bouton

REFUSED = (
    r"(Grapes|FeedbackAlignment)/0\.weight acts on errors on their way back.*handle\.paused\(\)"
    r"|FeedbackAlignment/0\.weight keeps errors from one layer to the next"
)


def dual(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


WAYS = {
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(lambda a: f(a).square().sum())(x),
    "dual": dual,
    "jvp of vmap": lambda f, x: jvp(vmap(f), (x,), (torch.ones_like(x),))[1],
    "vmap of jvp": lambda f, x: vmap(lambda a: jvp(f, (a,), (torch.ones_like(a),))[1])(x),
}


# torch compiles some forward-mode formulas by a script that it has deprecated itself
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@over_examples
def test_forward_mode_is_the_plain_derivative_or_refused(mechanism, way, frozen):
    model, _, handle = attached(mechanism)
    model.eval().requires_grad_(not frozen)
    x, _ = batch(0)
    plain = copy.deepcopy(model)
    if mechanism.site != "wiring" or mechanism.direction == "backward":
        bouton.detach(plain)
    with handle.paused():
        paused = way(model, x)
    if mechanism.site == "error" or isinstance(mechanism, bouton.FeedbackAlignment):
        with pytest.raises(ValueError, match=REFUSED):
            way(model, x)
        torch.testing.assert_close(paused, way(plain, x))
        return
    torch.testing.assert_close(way(model, x), way(plain, x))
