import torch

from ince.lora.allocation.importance import Importance, rank_scores


def test_sensitivity_and_uncertainty_are_smoothed_as_in_the_paper():
    weight = torch.tensor([[2.0, -1.0]])
    importance = Importance(weight)
    sensitivity = uncertainty = torch.zeros(1, 2)
    for grad in (torch.tensor([[1.0, 3.0]]), None, torch.tensor([[-2.0, 0.5]])):
        importance.update(weight, grad, beta1=0.9, beta2=0.6)
        now = (weight * (0 if grad is None else grad)).abs()
        sensitivity = 0.9 * sensitivity + 0.1 * now
        uncertainty = 0.6 * uncertainty + 0.4 * (now - sensitivity).abs()
    torch.testing.assert_close(importance.score(), sensitivity * uncertainty)


def test_a_rank_is_worth_its_value_and_the_mean_of_its_vectors():
    class Given:
        def __init__(self, values):
            self.values = torch.tensor(values)

        def score(self):
            return self.values

    a = Given([[1.0, 3.0], [0.0, 0.0]])
    e = Given([[10.0], [20.0]])
    b = Given([[3.0, 6.0], [6.0, 6.0], [9.0, 6.0]])
    assert rank_scores(a, e, b).tolist() == [10 + 2 + 6, 20 + 0 + 6]
