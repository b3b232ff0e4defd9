"""How good a model is: measures of classifiers and of generated images, as numbers and shown."""

from loopax.measures.classification import (
    beside_others,
    calibration,
    guessing,
    scores,
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
from loopax.measures.pictures import save_calibration, save_confusion, save_training
from loopax.measures.tables import (
    overview,
    sections,
    tables,
    verdict,
    write_classifier_report,
)

__all__ = [
    "ClassScores",
    "NeighbourhoodScores",
    "PointSet",
    "beside_others",
    "calibration",
    "class_scores",
    "frechet_distance",
    "guessing",
    "kernel_distance",
    "nearest_distances",
    "neighbourhood_scores",
    "overview",
    "save_calibration",
    "save_confusion",
    "save_training",
    "scores",
    "sections",
    "surest_mistakes",
    "tables",
    "verdict",
    "wilson_interval",
    "write_classifier_report",
]
