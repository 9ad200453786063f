"""What an action would do to a rollout, in one sentence for the person who is about to take it."""

from deploy.rollout import Action, Plan
from feedback.schema import RolloutState


def sentence_of(plan: Plan) -> str:
    if plan.to_state is RolloutState.SHADOW:
        text = f"{plan.candidate} answers some prompts in the background, beside {plan.stable}; nobody meets it."
        text += {
            Action.HOLD: " It stays so until somebody resumes or advances.",
            Action.RESUME: " It is held no longer.",
        }.get(plan.action, "")
    elif plan.action is Action.HOLD:
        text = f"{plan.candidate} stays at {plan.to_share:.0%} of users until somebody resumes or advances."
    elif plan.action is Action.RESUME:
        text = f"{plan.candidate} is held no longer; its step at {plan.to_share:.0%} of users begins anew."
    elif plan.to_state is RolloutState.CANARY:
        text = (
            f"{plan.candidate} goes from {plan.from_share:.0%} to {plan.to_share:.0%} of users, beside {plan.stable}."
        )
    elif plan.to_state is RolloutState.PROMOTED:
        text = f"{plan.candidate} becomes the stable policy in place of {plan.stable}, for all users."
    else:
        text = f"{plan.candidate} leaves service; {plan.stable} serves all users again."
    return text + (" The engine's base weights are swapped, which pauses streams briefly." if plan.swaps_base else "")
