"""Jobs, one JSON object a line: where they come from, what they say, which files they write, what becomes of them."""

from .drawing import Drawn, Outcome, draw_job, files_to_write, finished_files, names_of, save_images
from .job import JOB_KEYS, Job, jobs_of_lines, numbered
from .lines import lines_of_mappings, lines_of_source
from .places import LocalFiles, Place
from .report import NO_JOBS, report_lines

__all__ = [
    "JOB_KEYS",
    "NO_JOBS",
    "Drawn",
    "Job",
    "LocalFiles",
    "Outcome",
    "Place",
    "draw_job",
    "files_to_write",
    "finished_files",
    "jobs_of_lines",
    "lines_of_mappings",
    "lines_of_source",
    "names_of",
    "numbered",
    "report_lines",
    "save_images",
]
