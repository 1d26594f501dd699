"""The verdict on every public optimizer of optax: the tests hold it true, the docs print it."""

# The decay of the mean of squares.
READ = {
    "adadelta": 0.9,
    "adam": 0.999,
    "adamw": 0.999,
    "ademamix": 0.999,
    "amsgrad": 0.999,
    "dadapt_adamw": 0.999,
    "lamb": 0.999,
    "momo_adam": 0.999,
    "nadam": 0.999,
    "nadamw": 0.999,
    "optimistic_adam": 0.999,
    "optimistic_adam_v2": 0.999,
    "radam": 0.999,
    "rmsprop": 0.9,
    "schedule_free_adamw": 0.999,
    "simplified_ademamix": 0.95,
}
# What is held, and what is done about it.
CORRECTED = {
    "acprop": "the variance about the running mean of the step before, 2/(1+b1) times too large",
    "adabelief": "the variance about the running mean, 2·b1²/(1+b1) times the gradient's",
    "adafactor": "means over rows and over columns; their product, exact where ν has rank 1",
    "adagrad": "a sum, divided by the number of updates (`count=`, or exposed and counted)",
    "adan": "a mean of (g + (1-b2)·Δg)², larger by (1+β)² + β² with β = 1-b2",
    "adopt": "a mean that starts from the first square, so that it is never debiased",
    "muon": "a mean of squares for leaves that are not matrices; matrices have none and are fixed",
}
REFUSED = {
    "adamax": "a running maximum of absolute values, in Adam's own state",
    "adamaxw": "a running maximum of absolute values, in Adam's own state",
    "cocob": "no second moment",
    "dog": "no second moment",
    "dowg": "no second moment",
    "fromage": "no second moment",
    "galore": "a moment of projected gradients",
    "lars": "no second moment",
    "lbfgs": "no second moment",
    "lion": "no second moment",
    "madgrad": "a weighted sum, and weight decay enters it",
    "momo": "no second moment",
    "noisy_sgd": "no second moment",
    "novograd": "squared norms of layers",
    "optimistic_gradient_descent": "no second moment",
    "polyak_sgd": "no second moment",
    "prodigy": "a moment of gradients times a step size that changes",
    "rprop": "no second moment",
    "schedule_free_sgd": "no second moment",
    "sgd": "no second moment",
    "sign_sgd": "no second moment",
    "signum": "no second moment",
    "sm3": "maxima over rows and columns",
    "sophia": "a Hessian",
    "yogi": "no mean, in Adam's own state",
}
# Optimizers that are not optax's own: how they are read, and what they hold. Those that have a
# function in tests/second_order.py are made there from the papers.
MATRICES = {
    "soap": (
        "read",
        "a mean of squares in the basis that it keeps, `exp_avg_sq` with `Q`; the count leaves out "
        "the first gradient, which gives the basis alone, and steps at which the squares wait",
    ),
    "shampoo": (
        "read",
        "sums or means of products of the gradient along each axis; the moment is their Kronecker "
        "product, without what they start from (`epsilon`) and without the roots",
    ),
    "kron": (
        "refused",
        "roots of an inverse (PSGD), fitted by steps and random vectors; nothing says over how "
        "many gradients they look back",
    ),
    "ivon": (
        "refused",
        "a Hessian, made of gradients at drawn weights; read by hand, see below",
    ),
    "kfac-jax": (
        "refused",
        "no transformation of gradients: its factors are of inputs and cotangents; read by hand, "
        "see below",
    ),
}
# Public, and no optimizers: what they are instead.
NOT_OPTIMIZERS = {
    "a wrapper or a container": (
        "apply_if_finite chain conditionally_mask conditionally_transform flatten "
        "inject_hyperparams inject_stateful_hyperparams lookahead masked multi_transform "
        "named_chain partition selective_transform with_extra_args_support mechanize sam "
        "schedule_free split_real_and_imaginary"
    ),
    "a transformation of gradients, to be chained": (
        "adaptive_grad_clip add_decayed_weights add_noise apply_every centralize clip "
        "clip_by_block_rms clip_by_global_norm differentially_private_aggregate ema freeze "
        "identity keep_params_nonnegative normalize normalize_by_update_norm reduce_on_plateau "
        "scale set_to_zero stateless stateless_with_tree_map trace zero_nans"
    ),
    "an observer": "measure_with_ema snapshot",
    "it needs gradients of each example": "dpsgd",
}
