"""This study has a data set of its own: data._target_=experiments.pbt_digits.data.search_digits."""
