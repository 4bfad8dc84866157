"""A layer that begins as a kernel machine: what a frozen encoder would make of the examples, before it is trained."""

from typing import Any

from vllm_lora_router.tools.fit.finetune.model import SequenceModel

# Chosen with all-MiniLM-L6-v2 on random draws of 8 and 20 of CLINC150's training questions, by its validation split.
_STEEP, _OFFSET = 2.0, 0.1
_PENALTY = 0.1
_SCORE = 3.0  # what a score of 1 is beside the embedding's numbers, which are about 1
_LOGIT = 13.0  # what a score of 1 is as a logit


def start(model: SequenceModel, states: Any, targets: Any, generator: Any) -> bool:
    """Makes the last layer's feed-forward part a kernel machine over the examples; False where it has no room for one.

    A hidden unit stands for an example: it is the activation of a cosine, that of a text's embedding with the
    example's, both less the mean of all examples. Few examples lie in several places of a category, so this tells them
    apart better than a linear head can, and is as good a start as the frozen encoder allows (for why training should
    begin at a good head: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution"). The scores take the place of the embedding's first numbers, from where the head reads them.

    Args:
        model: as `sequence.load` gives it, its head and feed-forward part still zero.
        states: float [examples, width], what its last layer makes of them.
        targets: float [examples, labels]: 1 for the example's label, less the mean of all labels; 0: out of scope.
        generator: draws the examples, where there are more of them than units.
    """
    import torch

    layer, (pooler, head) = model.layers()[-1], model.head()
    inner, outer, activation = layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn
    labels, width = targets.shape[1], states.shape[1]
    room = inner.out_features - 2 * labels
    if room < inner.out_features // 2 or labels > width // 2:
        return False
    with torch.no_grad():
        mean = states.mean(dim=0)
        centred = states - mean
        length = centred.norm(dim=1).mean().clamp(min=1e-6)
        chosen = torch.randperm(len(states), generator=generator)[:room].to(states.device)
        points = torch.nn.functional.normalize(centred[chosen], dim=1)
        count = len(points)

        layer.attention.output.LayerNorm.bias.copy_(-mean)
        inner.weight[:count] = points * (_STEEP / length)
        inner.bias[:count] = -_STEEP * _OFFSET
        # The numbers that the scores take the place of leave by the last units: gelu(x) - gelu(-x) is x.
        places = torch.eye(width, device=states.device)[:labels]
        inner.weight[-2 * labels :] = torch.cat([places, -places])
        inner.bias[-2 * labels :] = 0
        outer.weight[:, -2 * labels :] = torch.cat([-places, places]).T

        hidden = activation(centred @ inner.weight[:count].T + inner.bias[:count]).double()
        unit = float(activation(torch.tensor(_STEEP * (1 - _OFFSET))))
        normal = hidden.T @ hidden + _PENALTY * unit**2 * torch.eye(count, dtype=torch.float64, device=states.device)
        scores = torch.linalg.solve(normal, hidden.T @ targets.double()).float()  # [units, labels]
        outer.weight[:labels, :count] = _SCORE * scores.T
        slope = float(pooler.weight[0, 0]) * _SCORE
        head.weight[:] = torch.eye(labels, width, device=states.device) * (_LOGIT / slope)
    return True
