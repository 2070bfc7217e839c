"""Metrics: the Fréchet distance in the features of a small classifier that is trained once for each labelled set.

`evaluate` judges samples, `classifier_for` gives the classifier, `Moments` and `frechet_distance` work on any features.
"""

from __future__ import annotations

from .classifier import Classifier, classifier_for
from .evaluation import evaluate
from .frechet import Moments, frechet_distance

__all__ = ["Classifier", "Moments", "classifier_for", "evaluate", "frechet_distance"]
