"""Where each token of the three models sits; the one place that knows.

    OpenVLA      [BOS][vision][prompt]                                       causal
    OpenVLA-OFT  [BOS][vision of each camera][proprioception][prompt]
                 [T x A zeroed action slots][</s>]                           bidirectional
    CogACT       [BOS][vision][prompt][</s> = cognition token]               causal

OpenVLA-OFT reads its chunk one position before the action slots: at the prompt's last token and at
all slots but the last. Its training took the hidden states at the positions that would predict
the slots' tokens, as in next-token prediction, and kept that when attention became bidirectional.
"""

from collections.abc import Sequence

from vla_cache_ros.core.layout import CameraSpan, TokenLayout


def openvla_layout(cameras: Sequence[str], grid: int, prompt_length: int) -> TokenLayout:
    """OpenVLA's layout.

    Args:
        cameras: Names of the cameras.
        grid: Patches along one side.
        prompt_length: Ids of the prompt, BOS included.
    """
    return _layout(cameras, grid, text=prompt_length - 1, causal=True)


def oft_layout(
    cameras: Sequence[str], grid: int, prompt_length: int, action_slots: int
) -> TokenLayout:
    """OpenVLA-OFT's layout.

    Args:
        cameras: Names of the cameras, primary first.
        grid: Patches along one side.
        prompt_length: Ids of the prompt, BOS included.
        action_slots: T x A.
    """
    return _layout(
        cameras, grid, text=prompt_length - 1, between=1, actions=action_slots, closing=1
    )


def oft_readout(layout: TokenLayout) -> tuple[int, int]:
    """Slots (start, stop) whose hidden states OpenVLA-OFT's action head reads."""
    start, stop = layout.actions
    return start - 1, stop - 1


def cogact_layout(cameras: Sequence[str], grid: int, prompt_length: int) -> TokenLayout:
    """CogACT's layout; its one action slot is the cognition token at the end.

    Args:
        cameras: Names of the cameras.
        grid: Patches along one side.
        prompt_length: Ids of the prompt, BOS and cognition token included.
    """
    return _layout(cameras, grid, text=prompt_length - 2, actions=1, causal=True)


def _layout(
    cameras: Sequence[str],
    grid: int,
    *,
    text: int,
    between: int = 0,
    actions: int = 0,
    closing: int = 0,
    causal: bool = False,
) -> TokenLayout:
    spans: list[CameraSpan] = []
    start = 1  # behind BOS
    for name in cameras:
        spans.append(CameraSpan(name, start, grid, grid))
        start = spans[-1].stop
    text_start = start + between
    actions_start = text_start + text
    actions_stop = actions_start + actions
    return TokenLayout(
        cameras=tuple(spans),
        text=(text_start, actions_start),
        actions=(actions_start, actions_stop),
        num_tokens=actions_stop + closing,
        causal=causal,
    )
