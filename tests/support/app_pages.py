"""What tests do with a page of the app, without a browser."""

from streamlit.testing.v1 import AppTest

from tokenstats.cli.app import app_file

HOME = str(app_file())
EKSFT = "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)"


def value(app: AppTest, label: str) -> str:
    (metric,) = (m for m in app.metric if m.label == label)
    return metric.value


def quiet(app: AppTest) -> AppTest:
    assert not app.exception
    assert not app.error
    assert not app.warning
    return app


def choose(app: AppTest, key: str, option: str) -> AppTest:
    return app.segmented_control(key=key).set_value(option).run()


def answer(app: AppTest) -> AppTest:
    """As a browser does that knows all that was drawn, and has told of all changes."""
    app.session_state["heard"] = app.session_state["asked"]
    return app.run()


def save(app: AppTest) -> AppTest:
    return answer(app.button(key="save").click().run())
