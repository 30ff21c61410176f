"""The goals of training on a CPU, printed beside what was measured."""

import math
import statistics


def report(what, value, *, at_least=None, at_most=None):
    """A line, and the same as data."""
    goal = f"at most {at_most}" if at_least is None else f"at least {at_least}"
    reached = value <= at_most if at_least is None else value >= at_least
    print(f"  {what}: {value:.3g}; goal: {goal}, {'reached' if reached else 'missed'}")
    return {"what": what, "value": value, "goal": goal, "reached": reached}


def ratio_with_spread(ours, theirs):
    """Of all steps, and the lowest and highest of the rounds: steps made in the same round."""
    rounds = [
        a / b
        for a, b in zip(
            ours["targets_per_second_by_step"], theirs["targets_per_second_by_step"], strict=True
        )
    ]
    whole = ours["targets_per_second"] / theirs["targets_per_second"]
    return {"ratio": whole, "lowest": min(rounds), "highest": max(rounds)}


def report_speed(found):
    """A table of the libraries, and the goals of `ince`; returns them."""
    for name, each in found.items():
        memory = each["memory"]
        print(
            f"  {name:24s} {each['targets_per_second']:8.1f} target tokens/s,"
            f" {each['tokens_per_second']:8.1f} tokens/s"
            f" ({each['places_per_second']:.1f} with padding),"
            f" peak {memory['peak'] / 1e9:.2f} GB, of its own {memory['own_peak'] / 1e9:.2f} GB"
        )
        if "bound" in each:
            bound = each["bound"]
            print(
                f"  {'':24s} bound {bound['tokens_per_second']:.1f} tokens/s"
                f" ({bound['gflops']:.0f} GFLOP/s), reached {100 * bound['share']:.1f}%"
            )
    ours = found.get("ince")
    if ours is None:
        return {}
    goals = {"bound": report("share of the bound", ours["bound"]["share"], at_least=0.6)}
    for name, least in (("TRL NF4", 4.0), ("TRL 16-bit", None), ("plain NF4", 2.0)):
        if name not in found:
            continue
        ratio = ratio_with_spread(ours, found[name])
        spread = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f} by round"
        what = f"target tokens/s over {name} ({spread})"
        if least is None:
            print(f"  {what}: {ratio['ratio']:.3g}")
            goals[name] = ratio
        else:
            goals[name] = report(what, ratio["ratio"], at_least=least) | ratio
    if "TRL NF4" in found:
        share = ours["memory"]["peak"] / found["TRL NF4"]["memory"]["peak"]
        goals["memory"] = report("share of TRL NF4's peak memory", share, at_most=0.35)
    return goals


def report_loss(found):
    """The seeds' losses, and whether the libraries' means differ by more than the seeds do."""
    print(f"  base: {found['base']:.4f} on {found['eval_targets']} held-out target tokens")
    for name, losses in found["losses"].items():
        mean = statistics.mean(losses)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"  {name:24s} {mean:.4f}, deviation {spread:.4f} ({each})")
    if len(found["losses"]) < 2:
        return {}
    ours, theirs = found["losses"].values()
    difference = statistics.mean(ours) - statistics.mean(theirs)
    if len(ours) < 2:
        print(f"  difference {difference:+.4f}; one seed tells no noise")
        return {"difference": difference}
    noise = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(ours))
    goal = report(
        f"difference of the means ({difference:+.4f}) in standard errors of the seeds",
        abs(difference) / max(noise, 1e-12),
        at_most=2.0,
    )
    return goal | {"difference": difference, "standard_error": noise}
