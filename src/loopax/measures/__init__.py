"""How good a model is: measures of classifiers and of generated images, as numbers and shown."""

from loopax.measures.classification import (
    calibration,
    guessing,
    scores,
    scores_of_baseline,
    surest_mistakes,
    wilson_interval,
)
from loopax.measures.fidelity import (
    ClassScores,
    NeighbourhoodScores,
    PointSet,
    class_scores,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    neighbourhood_scores,
)
from loopax.measures.pictures import save_calibration, save_confusion
from loopax.measures.tables import headline, needs_confusions, tables, verdict

__all__ = [
    "ClassScores",
    "NeighbourhoodScores",
    "PointSet",
    "calibration",
    "class_scores",
    "frechet_distance",
    "guessing",
    "headline",
    "kernel_distance",
    "nearest_distances",
    "needs_confusions",
    "neighbourhood_scores",
    "save_calibration",
    "save_confusion",
    "scores",
    "scores_of_baseline",
    "surest_mistakes",
    "tables",
    "verdict",
    "wilson_interval",
]
