"""Promise 5: own randomness."""

import torch
from subjects import EXAMPLES, build, over_examples, over_models, same, train

import bouton


def run(mechanisms, seed=0, model_name="mlp"):
    model, optimizer = build(model_name, "adamw")
    handle = bouton.attach(model, optimizer, mechanisms, seed=seed)
    return train(model, optimizer, steps=4), handle


@over_models
@over_examples
def test_the_global_generator_is_left_alone_and_has_no_say(mechanism, model_name):
    before = torch.get_rng_state()
    first, handle = run([mechanism], 7, model_name)
    handle.stats()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(first, run([mechanism], 7, model_name)[0])


@over_examples
def test_looking_does_not_change_the_run(mechanism):
    model, optimizer = build("mlp", "adamw")
    handle = bouton.attach(model, optimizer, [mechanism], seed=7)
    train(model, optimizer, steps=2)
    assert handle.stats() == handle.stats()
    str(handle.report()), handle.state_dict()
    assert same(train(model, optimizer, steps=2, start=2), run([mechanism], seed=7)[0])


def test_another_seed_is_another_run_for_whatever_draws():
    for name in ("PlasticityDiversity-0", "SpineRemodeling-0"):
        assert not same(run([EXAMPLES[name]], seed=1)[0], run([EXAMPLES[name]], seed=2)[0])


def test_draws_do_not_depend_on_what_else_is_attached():
    alone = run([bouton.PlasticityDiversity()])[1].stats()["PlasticityDiversity"]
    beside = run([bouton.SpineRemodeling(every=1), bouton.PlasticityDiversity()])[1].stats()
    assert beside["PlasticityDiversity"] == alone
