"""Standard training, and adversarial training with the attacks of this library."""

from advfeat.training.config import TrainConfig, paper_attack, paper_cifar10
from advfeat.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "paper_attack", "paper_cifar10", "train"]
