"""The networks of the lab, each built to fit a data set."""

from collections.abc import Callable

from torch import nn

from bouton.lab.dataset import Dataset
from bouton.lab.models.attention import transformer
from bouton.lab.models.feedforward import cnn, mlp
from bouton.lab.models.recurrent import lstm, rnn
from bouton.lab.models.residual import resnet9
from bouton.lab.models.spiking import snn

MODELS: dict[str, Callable[[Dataset], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet9": resnet9,
    "rnn": rnn,
    "lstm": lstm,
    "transformer": transformer,
    "snn": snn,
}

__all__ = ["MODELS", "cnn", "lstm", "mlp", "resnet9", "rnn", "snn", "transformer"]
