"""The holdout: people in no fold, whom the ensemble of all folds is scored on.

Its scores are not biased by the choice of parameters and of epochs, as out-of-fold scores are, as
long as nothing is chosen by them, and no label of the holdout is corrected on the networks' advice.
"""

from face_attributes.scoring.metrics import SCORE_NAMES, SCORES, Counts, interval, resample_people
from face_attributes.scoring.paired_differences import format_difference

Leads = dict[str, dict[str, float]]
"""By score: difference (out of fold minus holdout), low and high (95%)."""


def out_of_fold_leads(out_of_fold: Counts, holdout: Counts, resamples: int) -> Leads:
    """Difference of each score of SCORES between two independent groups of people.

    Both groups are resampled, each by itself. The ensemble that is scored on the holdout is usually
    better than the single networks that are scored out of fold, so a lead is rather too small.

    Args:
        out_of_fold: confusion counts of the people in the folds (P x 18 x 18).
        holdout: those of the people in the holdout (H x 18 x 18).
    """
    # Different seeds: with the same one, groups of one size would be resampled alike.
    first, second = (
        resample_people(counts, resamples, seed)
        for seed, counts in enumerate((out_of_fold, holdout))
    )
    leads = Leads()
    for name, score in SCORES.items():
        difference = score(out_of_fold.sum(axis=0)) - score(holdout.sum(axis=0))
        low, high = interval(score(first) - score(second))
        leads[name] = {"difference": float(difference), "low": float(low), "high": float(high)}
    return leads


def describe_leads(leads: Leads) -> str:
    """Say whether macro F1 or accuracy out of fold lies above the holdout's by more than chance.

    Not the other scores: of many, one would by chance alone.
    """
    above = [name for name in ("macro_f1", "accuracy") if leads[name]["low"] > 0]
    texts = [
        f"{SCORE_NAMES[name]} {format_difference(*leads[name].values())}"
        for name in above or ["macro_f1"]
    ]
    if not above:
        return f"out of fold minus holdout: {texts[0]}: not above it by more than chance"
    return (
        f"out of fold lies above the holdout by more than chance: {'; '.join(texts)}: expect the "
        "holdout's scores for new people"
    )
