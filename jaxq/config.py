"""The path by which scripts import jaxq's own configuration; it lives in `jaxq.jobs.job`."""

from jaxq.jobs.job import Job as Job
from jaxq.jobs.job import job_of as job_of
from jaxq.jobs.job import of_call as of_call
from jaxq.jobs.job import options_of as options_of
from jaxq.jobs.job import read_job as read_job
from jaxq.jobs.job import write_job as write_job
