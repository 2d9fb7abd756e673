"""Learn ten digits in five tasks of two, then classify all ten, without being told the task. Needs no download."""

from lamella import Learner, class_incremental, load_source

digits = class_incremental(load_source("digits"), tasks=5)
learner = Learner.create(method={"name": "inflora", "epochs": 3, "batch_size": 32})  # carries alignment by default
for task in digits:
    learner.learn(task)  # sees the training images of this task only
    print("learned", task.name)

test = digits.joined().test(0)
guesses = learner.predict(test, top=1)
right = [guess.classes[0] == digits.class_names[label] for guess, label in zip(guesses, test.labels.tolist(), strict=True)]
print(f"all ten digits: {sum(right)} of {len(right)} right")

learner.save("digits-model")  # safetensors and JSON; Learner.load("digits-model") goes on from here
