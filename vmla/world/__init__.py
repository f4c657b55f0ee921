"""`sprites`: endless captioned videos by formula, and a grader that knows the truth."""
