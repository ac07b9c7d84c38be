"""Instructions that tell a model how to answer, word for word as the authors of Octopus released them (`reasoning_sc.jinja` and
`reasoning.jinja` of their repository; paper A.3). They stand behind the question, separated by a blank line.
"""

SELF_CORRECTION_SUFFIX = (
    "You first think through your reasoning process as an internal monologue, enclosed within <think> </think> tags. "
    "Then, provide your final answer enclosed within \\boxed{}. If you believe the answer can be further enhanced, "
    "generate <self-correction> </self-correction> tags enclosed with no content, and regenerate a new reasoning "
    "process and a new answer from scratch after that. The new response should first think through your reasoning "
    "process as an internal monologue, enclosed within <think> </think> tags. Then, provide your final answer "
    "enclosed within \\boxed{}. All reasoning, answer steps must be included without omission."
)
"""Asks for a correction behind the first attempt; the prompt of training and inference."""

THINK_SUFFIX = (
    "You first think through the reasoning process as an internal monologue, enclosed within <think> </think> tags. "
    "Then, provide your final answer enclosed within \\boxed{}."
)
"""Asks for a single attempt; the prompt of the baselines, and of inference without self-correction."""
