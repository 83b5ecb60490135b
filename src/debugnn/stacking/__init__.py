"""Several trainings of one architecture at once (optional: nothing else imports this)."""
