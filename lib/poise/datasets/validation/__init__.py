"""A data set is checked before it costs a day: tools/check_data.py in full, tools/train.py the
part that costs no time.
"""
