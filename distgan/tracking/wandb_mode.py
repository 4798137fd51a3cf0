"""Read W&B's own variables, before anything heavy is imported."""

from collections.abc import Mapping

YES = ("1", "true", "yes", "on", "y", "t")
OLD_NAMES = {"dryrun": "offline", "run": "online"}


def mode_of_environment(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the mode that is asked for and the variable that asks, both empty where none does.

    WANDB_DISABLED is read here, since the client no longer does so itself.
    """
    if environment.get("WANDB_DISABLED", "").strip().lower() in YES:
        return "disabled", "WANDB_DISABLED"
    mode = environment.get("WANDB_MODE", "").strip().lower()
    return (OLD_NAMES.get(mode, mode), "WANDB_MODE") if mode else ("", "")
