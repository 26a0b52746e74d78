"""Which text fits this picture: benchmarks of compositionality read, generated and scored, weights learned there."""

from __future__ import annotations

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ComposeReport": "undiffuse.analysis.compositionality.bench:ComposeReport",
        "DomainGap": "undiffuse.analysis.compositionality.gap:DomainGap",
        "Item": "undiffuse.analysis.compositionality.task:Item",
        "LAYOUTS": "undiffuse.analysis.compositionality.layouts.table:LAYOUTS",
        "LearnedWeights": "undiffuse.analysis.compositionality.learned:LearnedWeights",
        "Picture": "undiffuse.analysis.compositionality.task:Picture",
        "Prompt": "undiffuse.analysis.compositionality.prompts:Prompt",
        "Task": "undiffuse.analysis.compositionality.task:Task",
        "TaskErrors": "undiffuse.analysis.compositionality.score:TaskErrors",
        "bench_compose": "undiffuse.analysis.compositionality.bench:bench_compose",
        "classifier_filter": "undiffuse.analysis.compositionality.own_generations:classifier_filter",
        "cross_matrix": "undiffuse.analysis.compositionality.own_generations:cross_matrix",
        "domain_gap": "undiffuse.analysis.compositionality.gap:domain_gap",
        "effect_size": "undiffuse.analysis.compositionality.measures:effect_size",
        "geneval_prompts": "undiffuse.analysis.compositionality.prompts:geneval_prompts",
        "labelled_task": "undiffuse.analysis.compositionality.labelled:labelled_task",
        "learn_on": "undiffuse.analysis.compositionality.learned:learn_on",
        "learn_weights": "undiffuse.analysis.compositionality.learned:learn_weights",
        "mcnemar": "undiffuse.analysis.compositionality.measures:mcnemar",
        "moved_task": "undiffuse.analysis.compositionality.labelled:moved_task",
        "open_layout": "undiffuse.analysis.compositionality.layouts.table:open_layout",
        "pair_scores": "undiffuse.analysis.compositionality.measures:pair_scores",
        "prompts_of": "undiffuse.analysis.compositionality.prompts:prompts_of",
        "read_self_bench": "undiffuse.analysis.compositionality.own_generations:read_self_bench",
        "read_task": "undiffuse.analysis.compositionality.task:read_task",
        "score_task": "undiffuse.analysis.compositionality.score:score_task",
        "self_bench": "undiffuse.analysis.compositionality.own_generations:self_bench",
        "share": "undiffuse.metrics.shares:share",
        "text_prompts": "undiffuse.analysis.compositionality.prompts:text_prompts",
        "time_profile": "undiffuse.analysis.compositionality.gap:time_profile",
        "two_digit_tasks": "undiffuse.analysis.compositionality.two_digits:two_digit_tasks",
        "two_digits": "undiffuse.analysis.compositionality.two_digits:two_digits",
        "write_task": "undiffuse.analysis.compositionality.task:write_task",
    },
)
