"""A directory into a repository of the Hugging Face hub, by the hub's own client. What is there already is
not sent again, so an upload that broke off goes on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuner.errors import DataError
from tuner.hub import http
from tuner.hub.huggingface import LOGIN, headers, network_errors, refuse_offline


def publish(directory: Path, repo: str, *, public: bool, message: str) -> str:
    """Send the files to the model repository `repo`, which is made where there is none: private unless
    `public`. Returns its address. Raises DataError.
    """
    from huggingface_hub import HfApi

    refuse_offline(repo, "model")
    api = HfApi(library_name="tuner", user_agent=headers().get("User-Agent"))
    _asked(lambda: api.create_repo(repo, private=not public, exist_ok=True), repo)
    found = _asked(lambda: api.repo_info(repo), repo)
    if not public and not found.private:
        raise DataError(
            f"{repo} is there already, and public. Nothing was sent. Add --public to publish into it, or "
            "name another repository."
        )
    _asked(lambda: api.upload_folder(repo_id=repo, folder_path=directory, commit_message=message), repo)
    return f"{api.endpoint}/{repo}"


def _asked(ask: Callable[[], Any], repo: str) -> Any:
    from huggingface_hub import constants, errors

    try:
        return ask()
    except errors.HFValidationError as error:
        raise DataError(f"{repo!r} is no name for a repository, such as org/name: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise DataError(
                f"{constants.ENDPOINT} refuses to write to {repo} (status {status}). Use a token that may "
                f"write there: {LOGIN}."
            ) from error
        raise DataError(f"{constants.ENDPOINT} did not take {repo}: {error}") from error
    except network_errors() as error:
        raise http.unreachable_error(constants.ENDPOINT, str(error) or type(error).__name__) from error
