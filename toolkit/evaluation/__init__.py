"""Exams: tasks, their scores with intervals, and whether one model is better than another."""
