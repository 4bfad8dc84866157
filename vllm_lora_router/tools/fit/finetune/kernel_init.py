"""Initialisation of a feed-forward layer as a kernel machine on the encoder's embeddings of the examples."""

from typing import Any

from vllm_lora_router.tools.fit.finetune.model import SequenceModel

# Chosen with all-MiniLM-L6-v2 on random samples of 8 and 20 of CLINC150's training questions, by its validation split.
_STEEPNESS, _OFFSET = 2.0, 0.1
_PENALTY = 0.1
_SCORE_SCALE = 3.0  # a score of 1, relative to the embedding's values, which are about 1
_LOGIT_SCALE = 13.0  # a score of 1, as a logit


def initialise_from_kernel(model: SequenceModel, states: Any, targets: Any, generator: Any) -> bool:
    """Make the last layer's feed-forward part a kernel machine over the examples; return False if it is too small.

    Each hidden unit represents an example: its activation is that of the cosine between the text's embedding and the
    example's, both minus the mean of all examples. Few examples form several clusters per category, so a kernel
    machine separates them better than a linear head, and it is as good a start as the frozen encoder allows. Training
    should start from a good head: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution". The scores replace the embedding's first values, from where the head reads them.

    Args:
        model: Result of `load_model`, with head and feed-forward part still zero.
        states: Output of the last layer for each example, float [examples, width].
        targets: 1 for the example's label, minus the mean of all labels; 0: out of scope. float [examples, labels].
        generator: Samples the examples if there are more of them than hidden units.
    """
    import torch

    layer, (pooler, head) = model.layers()[-1], model.head()
    inner, outer, activation = layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn
    labels, width = targets.shape[1], states.shape[1]
    max_units = inner.out_features - 2 * labels
    if max_units < inner.out_features // 2 or labels > width // 2:
        return False
    with torch.no_grad():
        mean = states.mean(dim=0)
        centred = states - mean
        length = centred.norm(dim=1).mean().clamp(min=1e-6)
        sampled = torch.randperm(len(states), generator=generator)[:max_units].to(states.device)
        points = torch.nn.functional.normalize(centred[sampled], dim=1)
        count = len(points)

        layer.attention.output.LayerNorm.bias.copy_(-mean)
        inner.weight[:count] = points * (_STEEPNESS / length)
        inner.bias[:count] = -_STEEPNESS * _OFFSET
        # The last units subtract the embedding's values that the scores replace: gelu(x) - gelu(-x) is x.
        replaced = torch.eye(width, device=states.device)[:labels]
        inner.weight[-2 * labels :] = torch.cat([replaced, -replaced])
        inner.bias[-2 * labels :] = 0
        outer.weight[:, -2 * labels :] = torch.cat([-replaced, replaced]).T

        hidden = activation(centred @ inner.weight[:count].T + inner.bias[:count]).double()
        unit = float(activation(torch.tensor(_STEEPNESS * (1 - _OFFSET))))
        normal = hidden.T @ hidden + _PENALTY * unit**2 * torch.eye(count, dtype=torch.float64, device=states.device)
        scores = torch.linalg.solve(normal, hidden.T @ targets.double()).float()  # [units, labels]
        outer.weight[:labels, :count] = _SCORE_SCALE * scores.T
        slope = float(pooler.weight[0, 0]) * _SCORE_SCALE
        head.weight[:] = torch.eye(labels, width, device=states.device) * (_LOGIT_SCALE / slope)
    return True
