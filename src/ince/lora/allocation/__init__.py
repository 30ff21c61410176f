"""AdaLoRA's budget of ranks: what each rank is worth, how many are left, which are given up.

    schedule       how many ranks at a step
    importance     what each is worth, from weights and gradients
    allocator      the two together: `update_and_allocate`
    pattern        which ranks are left, as a config says it
    files          adapters whose ranks were given up, into files and back
    orthogonality  the regularizer that keeps ranks apart

Source: arXiv:2303.10512.
"""
