"""Learn ten digits in five tasks of two, then classify all ten, without being told the task. Needs no download."""

from lamella import Learner, class_incremental, load_source

digits = class_incremental(load_source("digits"), tasks=5)
learner = Learner.create(backbone="fractal-vit-micro")  # comes with the package; the default is for photographs
for task in digits:
    learner.learn(task)  # sees the training images of this task only
    print("learned", task.name)

test = digits.joined().test(0)
names = [digits.class_names[label] for label in test.labels.tolist()]
right = [guess.classes[0] == name for guess, name in zip(learner.predict(test), names, strict=True)]
print(f"all ten digits: {sum(right)} of {len(right)} right")

learner.save("digits-model")  # safetensors and JSON; Learner.load("digits-model") goes on from here
