import math

import keras
import numpy as np
import pytest

from keras_efficient.callbacks.angular_velocity import AngularVelocity


def make_variables(*values, names=("a", "b")):
    return [
        keras.Variable(np.array(value, "float32"), name=name)
        for value, name in zip(values, names)
    ]


def follow(velocity, points):
    """Lead one variable along points; return the angles."""
    variable = keras.Variable(np.array(points[0], "float32"), name="a")
    angles = []
    for point in points:
        variable.assign(np.array(point, "float32"))
        velocity.sample([variable])
        angles.append(velocity.close())
    return angles


def walk(turns, scale=1.0):
    headings = np.radians(np.cumsum([0.0, *turns]))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return scale * np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_angles_of_hand_made_trajectories(scale):
    angles = follow(AngularVelocity(), walk([0, 60, 90, 180], scale))
    assert all(map(math.isnan, angles[:2]))
    np.testing.assert_allclose(angles[2:], [0, 60, 90, 180], atol=0.02)


def test_zero_step_is_no_observation():
    points = np.insert(walk([60, 90]), 2, walk([60, 90])[1], axis=0)
    angles = follow(AngularVelocity(), points)
    assert math.isnan(angles[2])
    np.testing.assert_allclose(angles[3:], [60, 90], atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_clear_the_history(bad):
    velocity = AngularVelocity()
    follow(velocity, walk([60]))
    assert len(velocity.points) == 2
    assert math.isnan(*follow(velocity, [[bad, 0.0]]))
    assert velocity.points == []
    np.testing.assert_allclose(follow(velocity, walk([60]))[2], 60, atol=1e-3)


def test_window_with_a_non_finite_sample_is_void():
    velocity = AngularVelocity()
    for values in ([0.0], [np.nan], [1.0]):
        velocity.sample(make_variables(values))
    assert math.isnan(velocity.close())
    assert velocity.points == [] and velocity.samples == 0
    velocity.sample(make_variables([2.0]))
    velocity.close()
    np.testing.assert_array_equal(velocity.points[0][0], [2.0])


def test_point_is_the_mean_of_the_samples():
    velocity = AngularVelocity()
    for value in (1.0, 2.0, 6.0):
        velocity.sample(make_variables([value], [[value, 0.0]]))
    velocity.close()
    (point,) = velocity.points
    np.testing.assert_allclose(point[0], [3.0])
    np.testing.assert_allclose(point[1], [[3.0, 0.0]])


def test_points_are_copies():
    velocity = AngularVelocity()
    (variable,) = make_variables([1.0])
    velocity.sample([variable])
    velocity.close()
    variable.assign([5.0])
    np.testing.assert_array_equal(velocity.points[0][0], [1.0])


def test_other_variables_clear_the_history():
    velocity = AngularVelocity()
    follow(velocity, walk([60]))
    velocity.sample(make_variables([0.0, 0.0], names=("other",)))
    assert math.isnan(velocity.close())
    assert len(velocity.points) == 1


def test_sums_in_float64():
    """A long vector whose dot product float32 does not hold."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(2, 300_000)) * 1e25
    points = np.cumsum([0 * steps[0], *steps], axis=0)
    angle = follow(AngularVelocity(), points)[-1]
    u, v = np.diff(points.astype("float32").astype("float64"), axis=0)
    cosine = u @ v / np.sqrt((u @ u) * (v @ v))
    assert angle == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-6)


@pytest.mark.parametrize("samples", [0, 1])
def test_state_goes_on(samples):
    points = walk([60, 90, 120])
    velocity, other = AngularVelocity(), AngularVelocity()
    follow(velocity, points[:3])
    for _ in range(samples):
        velocity.sample(make_variables(points[3]))
    other.restore({k: np.copy(v) for k, v in velocity.state().items()})
    assert other.samples == samples
    # Another name, as a model built anew has.
    variable = make_variables(points[3], names=("other",))
    other.sample(variable)
    assert other.close() == pytest.approx(90, abs=1e-3)
    other.sample(make_variables(points[4], names=("other",)))
    assert other.close() == pytest.approx(120, abs=1e-3)


def test_state_of_another_shape_is_left():
    velocity, other = AngularVelocity(), AngularVelocity()
    follow(velocity, walk([60]))
    other.restore(velocity.state())
    other.sample(make_variables([0.0, 0.0, 0.0]))
    other.close()
    assert len(other.points) == 1


@pytest.mark.parametrize(
    "rate, angle", [(0.06, 118.2), (0.03, 103.3), (0.01, 94.3), (0.001, 90.4)]
)
def test_noisy_quadratic(rate, angle):
    """Gradient descent on 1/2 sum a_i (x_i - c_i)^2, noisy centres c_i.

    At equilibrium the variance of x_i is r a_i / (2 - r a_i), and
    cos w = -r/2 sum(a^3 / (2 - r a)) / sum(a^2 / (2 - r a)).
    """
    a = np.linspace(0.1, 20, 200)
    rng = np.random.default_rng(0)
    x = rng.normal(size=200) * np.sqrt(rate * a / (2 - rate * a))
    velocity, angles = AngularVelocity(), []
    variable = keras.Variable(x.astype("float32"), name="x")
    for _ in range(600):
        x = x - rate * a * (x - rng.normal(size=200))
        variable.assign(x.astype("float32"))
        velocity.sample([variable])
        angles.append(velocity.close())
    weights = a**2 / (2 - rate * a)
    cosine = -rate / 2 * np.sum(a * weights) / np.sum(weights)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(angle, abs=0.1)
    # One angle deviates by 5 degrees; the mean of 600 by 0.2 to 0.3.
    assert np.nanmean(angles) == pytest.approx(angle, abs=0.8)
