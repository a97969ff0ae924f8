"""Standard training, and adversarial training with the attacks of this library."""

from advfeat.training.config import TrainConfig, fast_attack, paper_attack, paper_cifar10
from advfeat.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "fast_attack", "paper_attack", "paper_cifar10", "train"]
